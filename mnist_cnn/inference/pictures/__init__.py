"""Turns users' pictures into images like those that a network was trained on."""
