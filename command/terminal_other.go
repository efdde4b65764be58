//go:build !unix

package command

const terminalPath = "CONIN$"
