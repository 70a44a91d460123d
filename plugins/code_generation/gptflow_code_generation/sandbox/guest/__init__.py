"""What runs inside the sandbox. Standard library only: guests have no site-packages."""
