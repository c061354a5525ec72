"""What a guest shows, what it means, and typing at it."""
