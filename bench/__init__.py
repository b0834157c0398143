"""Every figure that README quotes, each beside what a user would pick instead, in one run."""
