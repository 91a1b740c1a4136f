"""Services that the tests run against."""
