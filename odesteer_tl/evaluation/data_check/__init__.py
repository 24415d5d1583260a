"""`check_data`: are these texts fit to fit on? A file per thing that is looked at."""
