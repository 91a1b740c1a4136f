"""Public doubles for tests of programs that use Seedbed, each named for what it stands in for."""
