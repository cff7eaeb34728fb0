// A small service: contacts, for whoever has a key. Auditing is what audit.go and the two lines marked below add.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func admitted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("X-Api-Key") == "" && r.Header.Get("Authorization") == "":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Header.Get("X-Api-Key") == "k-intruder":
			w.WriteHeader(http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	shutdown, err := startTelemetry(ctx) // auditing
	if err != nil {
		panic(err)
	}
	calls := http.NewServeMux()
	calls.HandleFunc("GET /contacts", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "[]") })
	calls.HandleFunc("POST /contacts", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
	calls.HandleFunc("GET /contacts/{id}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.PathValue("id")) })
	calls.HandleFunc("DELETE /contacts/{id}", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the database is away", http.StatusInternalServerError)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		panic(err)
	}
	server := &http.Server{Handler: audited(admitted(calls))} // auditing
	go func() {
		<-ctx.Done()
		_ = server.Shutdown(context.Background())
	}()
	fmt.Println("listening", listener.Addr())
	_ = server.Serve(listener)
	_ = shutdown(context.Background()) // what was not sent yet is sent before the process ends
}
