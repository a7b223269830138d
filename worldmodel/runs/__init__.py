"""A folder that a program works in: choosing it, holding it, what lies in it, and stopping well."""
