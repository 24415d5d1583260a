"""The two reports of the command line: the demo, and the comparison of the literature's methods."""
