package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Connect gives a small client of Redis or Valkey (protocol RESP2) at redis://, rediss:// or
// unix://, so that the example needs no package. In a program, use go-redis: it reconnects, and has
// a pool of connections.
func Connect(address string) (Send, io.Closer, error) {
	at, err := url.Parse(address)
	if err != nil {
		return nil, nil, err
	}
	host := net.JoinHostPort(at.Hostname(), or(at.Port(), "6379"))
	database := strings.TrimPrefix(at.Path, "/")
	var connection net.Conn
	switch at.Scheme {
	case "redis":
		connection, err = net.Dial("tcp", host)
	case "rediss":
		connection, err = tls.Dial("tcp", host, nil)
	case "unix":
		connection, err = net.Dial("unix", at.Path)
		database = ""
	default:
		err = fmt.Errorf("%q is no scheme of Redis", at.Scheme)
	}
	if err != nil {
		return nil, nil, err
	}
	reader := bufio.NewReader(connection)
	send := func(args ...any) (any, error) {
		var text strings.Builder
		fmt.Fprintf(&text, "*%d\r\n", len(args))
		for _, arg := range args {
			part := fmt.Sprint(arg)
			fmt.Fprintf(&text, "$%d\r\n%s\r\n", len(part), part)
		}
		if _, err := io.WriteString(connection, text.String()); err != nil {
			return nil, err
		}
		return read(reader)
	}
	if password, given := at.User.Password(); given {
		args := []any{"AUTH", password}
		if user := at.User.Username(); user != "" {
			args = []any{"AUTH", user, password}
		}
		if _, err := send(args...); err != nil {
			connection.Close()
			return nil, nil, err
		}
	}
	if database = or(at.Query().Get("db"), database); database != "" && database != "0" {
		if _, err := send("SELECT", database); err != nil {
			connection.Close()
			return nil, nil, err
		}
	}
	return send, connection, nil
}

func read(reader *bufio.Reader) (any, error) {
	line, err := reader.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if line == "" {
		return nil, errors.New("the server speaks another protocol")
	}
	switch kind, rest := line[0], line[1:]; kind {
	case '+':
		return rest, nil
	case '-':
		return nil, errors.New(rest)
	case ':':
		return strconv.ParseInt(rest, 10, 64)
	case '$':
		size, err := strconv.Atoi(rest)
		if err != nil || size < 0 {
			return nil, err
		}
		data := make([]byte, size+2)
		if _, err := io.ReadFull(reader, data); err != nil {
			return nil, err
		}
		return string(data[:size]), nil
	case '*':
		size, err := strconv.Atoi(rest)
		if err != nil || size < 0 {
			return nil, err
		}
		values := make([]any, size)
		for index := range values {
			if values[index], err = read(reader); err != nil {
				return nil, err
			}
		}
		return values, nil
	default:
		return nil, errors.New("the server speaks another protocol")
	}
}
