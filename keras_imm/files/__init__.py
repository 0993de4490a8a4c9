"""Files: written whole or not at all, downloaded, and read without running them."""
