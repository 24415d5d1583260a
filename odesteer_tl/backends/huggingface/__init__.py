"""Plain Hugging Face models: edits as torch hooks on their decoder blocks; reading, scoring and generating."""
