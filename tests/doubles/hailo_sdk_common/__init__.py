"""Double of the package of Hailo's that holds the parser's exceptions."""
