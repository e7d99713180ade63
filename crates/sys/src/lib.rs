//! Every unsafe system call
