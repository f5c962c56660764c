//! One door to Linux: namespaces, mounts, cgroups, processes, safe paths.
