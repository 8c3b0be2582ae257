// Saves a message and reads it back, with nothing but code generated from protos/.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "example.test/client/sagastore/v1"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("done")
}

func run(target string) error {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client := pb.NewStorageServiceClient(connection)
	if err := saveAndGet(ctx, client); err != nil {
		return err
	}
	return readRefusal(ctx, client)
}

func saveAndGet(ctx context.Context, client pb.StorageServiceClient) error {
	sent := &pb.Message{
		Provider:     "google",
		Role:         "assistant",
		Content:      "Grüße aus Go 😀",
		Tags:         []string{"go", "plain"},
		Timestamp:    timestamppb.New(time.Unix(1_700_000_000, 123_456_789)),
		MetadataJson: `{"n": 12345678901234567890}`,
		SessionId:    proto.String("go"),
	}
	saved, err := client.Save(ctx, &pb.SaveRequest{Message: sent})
	if err != nil {
		return err
	}
	answer, err := client.Get(ctx, &pb.GetRequest{Id: saved.Id})
	if err != nil {
		return err
	}
	found := answer.Message
	if found.Revision != saved.Revision || found.CreatedAt == nil || found.Sequence == 0 {
		return fmt.Errorf("saved %v, found %v", saved, found)
	}
	again, err := client.Save(ctx, &pb.SaveRequest{Message: found})
	if err != nil || again.Revision != saved.Revision {
		return fmt.Errorf("saved %v, then %v, %v", saved, again, err)
	}
	// The service keeps microseconds.
	sent.Timestamp.Nanos = 123_456_000
	sent.Id = saved.Id
	found.Revision, found.CreatedAt, found.Sequence = 0, nil, 0
	if !proto.Equal(sent, found) {
		return fmt.Errorf("sent %v, found %v", sent, found)
	}
	return nil
}

func readRefusal(ctx context.Context, client pb.StorageServiceClient) error {
	_, err := client.Save(ctx, &pb.SaveRequest{Message: &pb.Message{Provider: "google", Tags: []string{""}}})
	refusal := status.Convert(err)
	if refusal.Code() != codes.InvalidArgument {
		return fmt.Errorf("expected INVALID_ARGUMENT, got %v", err)
	}
	for _, detail := range refusal.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok && len(bad.FieldViolations) == 2 {
			return nil
		}
	}
	return errors.New("no BadRequest with two fields")
}
