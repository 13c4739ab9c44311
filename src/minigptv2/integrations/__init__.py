"""Offers objects of this package through the interfaces of other projects."""
