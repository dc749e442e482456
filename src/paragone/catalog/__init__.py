"""What is known about models without having them: names, sizes, licences, sources. Plain data."""
