"""One migration a file; once released, a migration is never changed."""
