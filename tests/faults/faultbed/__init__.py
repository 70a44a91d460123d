"""What the fault tests are made of: workers to kill, a server to freeze, a journal to check by."""
