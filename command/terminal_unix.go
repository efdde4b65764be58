//go:build unix

package command

const terminalPath = "/dev/tty"
