"""Losses that timm does not have; classification takes timm's."""
