"""Tests the server and the package with clients and harnesses that others wrote (`make test-clients`)."""
