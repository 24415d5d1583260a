"""What steering does to texts: judges, metrics, sweeps over the strength."""
