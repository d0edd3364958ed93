"""What people look at: charts and self-contained reports, drawn from plain values."""
