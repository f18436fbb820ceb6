"""What operators see and change; superusers only."""
