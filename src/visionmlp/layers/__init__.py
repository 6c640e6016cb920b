"""Modules with two or more owners."""
