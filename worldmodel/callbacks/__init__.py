"""Lightning callbacks, one purpose each. They read a step's outputs or call one public method of the module."""
