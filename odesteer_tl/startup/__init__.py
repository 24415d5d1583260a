"""What a command does before its own code runs: an import that fails is told in a sentence, Ctrl-C ends it quietly."""
