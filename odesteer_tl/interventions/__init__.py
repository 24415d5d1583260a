"""What an intervention reads and writes, which tokens it steers, and what it reports."""
