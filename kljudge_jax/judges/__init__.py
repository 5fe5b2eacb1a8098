"""What learns a rule: mining labels, training heads, keeping them, and comparing them with KL."""
