"""What a trained flow is worth: likelihood and sample quality."""
