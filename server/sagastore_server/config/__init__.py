"""Settings: their model, where each value comes from, and their reference."""
