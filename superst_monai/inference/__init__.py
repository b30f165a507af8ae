"""From a slide to posterior maps, and every gene derived from them."""
