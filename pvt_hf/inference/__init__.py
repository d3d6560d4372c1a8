"""Answers of trained models on single images, attention maps, and pictures of both."""
