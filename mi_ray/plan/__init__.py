"""A sweep as distinct work with content keys, what each attack is held against, and what all of it costs."""
