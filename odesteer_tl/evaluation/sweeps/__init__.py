"""`ot.sweep`: places, methods and strengths in one run that stops at bounds and resumes."""
