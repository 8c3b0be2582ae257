"""Event loop, signals, worker processes and systemd."""
