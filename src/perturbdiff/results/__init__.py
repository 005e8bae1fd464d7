"""What an evaluation found: made, saved to a folder, loaded from one, and shown."""
