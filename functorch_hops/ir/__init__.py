"""The intermediate representation: graphs, what is known of their values, and how they are put together."""
