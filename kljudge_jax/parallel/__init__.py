"""Where parameters live when there is more than one device."""
