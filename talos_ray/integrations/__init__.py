"""Doors to other people's libraries. Each module loads its library when it is first used, and no sooner."""
