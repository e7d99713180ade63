//! Sandbox: namespaces, mounts, seccomp, capabilities, cgroups
