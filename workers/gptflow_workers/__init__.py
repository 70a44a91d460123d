"""The worker and scheduler processes of GPTFlow."""
