"""For tests of code that runs on threadserve, and of threadserve itself: the seeded kernel."""
