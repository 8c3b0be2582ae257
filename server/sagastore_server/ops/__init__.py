"""What running the service takes: settings, logs, signals, and the event loop."""
