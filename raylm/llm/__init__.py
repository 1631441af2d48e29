"""Text generation behind one async protocol."""
