"""Predictions for single images, attention maps, and pictures of both."""
