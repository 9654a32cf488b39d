"""The playground: a page that attacks networks in the browser. `docs/playground` is the page, this room serves it."""
