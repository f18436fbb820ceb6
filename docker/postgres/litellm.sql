-- Run once, when the cluster is made: the proxy's tables are in a database of their own.
CREATE DATABASE litellm;
