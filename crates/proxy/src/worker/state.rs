//! What one worker owns.
