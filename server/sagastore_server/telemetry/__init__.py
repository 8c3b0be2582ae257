"""Metrics, traces, logs, readiness and the HTTP endpoint for operators."""
