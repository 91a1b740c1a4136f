"""Seedbed keeps vector databases in step with the rows and media they were made from."""
